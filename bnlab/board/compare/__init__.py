"""The arms of a sweep side by side in TensorBoard, averaged over seeds. A pure reader of run folders."""

"""What people see in a terminal: the only place that imports rich."""

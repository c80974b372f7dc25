"""The plugins are data of the tests: pytest must not import them, which would register them."""

collect_ignore_glob = ["plugins/*"]

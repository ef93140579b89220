"""The certificate of a file: its physics measured, judged and written down."""

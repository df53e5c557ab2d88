"""The operations: a value and its derivative, one file each."""

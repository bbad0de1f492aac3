"""A MetaTrader 5 terminal over HTTP: beside the terminal on Windows, or with a simulated one anywhere."""

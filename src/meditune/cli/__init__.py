"""The command line: one module for each group of commands. Commands parse, call and print."""

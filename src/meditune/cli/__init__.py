"""The command line, with a module for each group of commands. Commands parse arguments, call the library and print."""

"""Running it for years: new research, drift, feedback, better versions."""

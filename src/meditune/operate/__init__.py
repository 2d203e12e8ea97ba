"""Long-term operation: new literature, drift, feedback, and better versions."""

"""Whether what comes in and goes out is still what it was: references, signals, alerts, and the evidence for them."""

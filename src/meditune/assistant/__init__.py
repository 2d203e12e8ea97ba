"""What a message asks for before any model sees it, and what may be shown of what a model wrote; rules alone."""

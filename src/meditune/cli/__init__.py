"""What `meditune` offers beside the journey: a module for each group of commands. They parse, call and print."""

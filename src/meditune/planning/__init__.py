"""What a training will take: memory, speed and time, predicted from the recipe and the model's shape alone."""

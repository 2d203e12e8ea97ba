"""A tuned model in the forms that other programs run, each checked against the model that it was made from."""

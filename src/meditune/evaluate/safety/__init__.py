"""A battery of consumer messages in which a wrong answer may hurt someone, and rules that grade answers."""

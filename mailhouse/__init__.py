"""The `mailhouse` command: a verb per thing a person does."""

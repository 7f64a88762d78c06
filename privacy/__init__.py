"""The rights of the people in the database: who someone is in every store, what is held of them, and how it goes."""

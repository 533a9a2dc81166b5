"""The model of a run behind HTTP, as clients of OpenAI's API expect it."""

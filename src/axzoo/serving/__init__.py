"""A built model behind OpenAI's chat protocol, and a page to talk to it."""

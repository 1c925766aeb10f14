"""HTTP servers: a built model behind OpenAI's chat protocol with a chat page, and a tokenizer server."""

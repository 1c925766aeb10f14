"""What a model is: its spec, how config.json is read, one file per architecture, the fp32 oracle."""

"""What a layer meets when the model runs: tokens, the hidden states they become, and rounding that heeds them."""

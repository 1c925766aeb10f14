"""How weights are stored: recipe, formats, scale rules, encoders."""

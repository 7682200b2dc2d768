"""What commands share: options, checks of outputs, printed tables."""

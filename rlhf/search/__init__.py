"""The search over config keys: proposals by Optuna, trials as processes of their own. No torch here."""

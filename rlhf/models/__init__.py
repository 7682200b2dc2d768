"""Chat models: messages to token ids, loading of bases, adapters attached as roles, forward passes over packed rows."""

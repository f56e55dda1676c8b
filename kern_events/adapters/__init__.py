"""Adapters: sessions of agent frameworks, recorded in the log. Each needs its framework's extra."""

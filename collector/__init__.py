"""Tillpost collector: a durable, batching collector for the Synerise API."""

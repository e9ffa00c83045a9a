"""Training: fine-tuning with guarantees or countermeasures, and recipes of many models."""

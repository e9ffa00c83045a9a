"""What is proven: privacy costs, events, certificates, guarantees."""

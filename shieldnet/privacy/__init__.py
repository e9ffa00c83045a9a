"""What is proven: prices, events, certificates, guarantees."""

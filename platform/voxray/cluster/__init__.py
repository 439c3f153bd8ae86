"""The machine and the cluster: the one place that connects to Ray, and the doctor."""

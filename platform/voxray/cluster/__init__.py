"""The machine and the cluster: the one place that connects to Ray, the doctor, jobs."""

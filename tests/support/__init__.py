"""What several tests share: tiny volumes, fake lock services, crash devices, real mounts."""

//! halsup as a service of systemd, seen from the outside with systemctl: the units as they are shipped, in a guest.

mod lives;
mod service;
mod socket;
mod unit;

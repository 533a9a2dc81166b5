#!/usr/bin/env bash
# Debian packages for the complete tests: Open MPI, parallel HDF5, SLURM with munge, an ssh server, iproute2, and
# Chromium, in which the page of `hvdlm serve` is tried.
# Needs root. A user of hvdlm does not need it: `make setup` works without.
set -euo pipefail
packages=(openmpi-bin libopenmpi-dev libhdf5-openmpi-dev slurm-wlm munge openssh-server iproute2 python3-venv g++ make
    chromium)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" = 0 ]; then echo "[setup-system] all ${#packages[@]} packages are installed"; exit 0; fi
if [ "$(id -u)" != 0 ]; then
    echo "[setup-system] error: needs root for: ${missing[*]}; run \`sudo make setup-system\`" >&2
    exit 1
fi
echo "[setup-system] installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# No service is started: the tests start what they need on ports of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "[setup-system] done"

#!/bin/sh
# Makes the secrets of docker-compose.yml, once: a password for Redis, for its clients and as a configuration for itself.
set -eu
folder=$(dirname "$0")/secrets
[ -e "$folder/redis_password" ] && exit 0
# Nobody else on this machine may look into the folder; in the containers, where it is not seen, any account may read.
mkdir -p "$folder"
chmod 700 "$folder"
password=$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')
printf 'requirepass %s\n' "$password" >"$folder/redis.conf"
printf '%s\n' "$password" >"$folder/redis_password"
chmod 644 "$folder"/*

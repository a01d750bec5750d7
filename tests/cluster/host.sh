#!/bin/sh
# host.sh NAME SHM_SIZE: pid 1 of one host. Its own name and view of files, then sshd; then it reaps orphans until it is killed.
# /run/cluster is the cluster's folder, laid out by world.py; `binds` there says what this host sees in which place.
set -eu
name=$1 shm_size=$2
mine=/run/cluster/$name
hostname "$name"

# The new /run is put together beside the old one, which the room's folder is in.
mount -t tmpfs -o mode=755 tmpfs "$mine/run"
mkdir -p "$mine/run/cluster" "$mine/run/home" "$mine/run/lock" "$mine/run/sshd"
mount --bind /run/cluster "$mine/run/cluster"
mount --rbind "$mine/run" /run
mount -t tmpfs -o "mode=1777,size=$shm_size" tmpfs /dev/shm

tab=$(printf '\t')
while IFS=$tab read -r source place; do
  mount --bind "$source" "$place"
done <"$mine/binds"

# Not pid 1: killing sshd is "sshd is down", not "the host is down".
/usr/sbin/sshd -f "$mine/sshd_config" -E "$mine/sshd.log"

while :; do
  sleep 1000000 &
  wait $! || : # somebody killed it: not a reason for the host to go down
done

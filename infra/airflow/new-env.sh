#!/bin/sh
# Make .env for compose.yaml: what is mounted, and secrets of its own. An .env that is there already stays as it is.
# sh infra/airflow/new-env.sh LAKE CORPORA
set -eu
[ $# -eq 2 ] || { echo "call: sh $0 LAKE CORPORA (two folders that exist)" >&2; exit 2; }
lake=$(cd "$1" && pwd -P)
corpora=$(cd "$2" && pwd -P)
owner=$(stat -c %u "$lake" 2>/dev/null || stat -f %u "$lake")
[ "$owner" -ne 0 ] || { echo "$lake belongs to root; give it to who shall run the commands: chown" >&2; exit 2; }
cd "$(dirname "$0")"

# So many random bytes, in characters that neither a URL nor JSON takes for others.
word() { head -c "$1" /dev/urandom | base64 | tr '+/' '-_'; }

umask 077
set -C
cat > .env <<END
LAKE='$lake'
CORPORA='$corpora'
# Who Airflow and its commands run as: the lake's owner.
OWNER=$owner
FERNET_KEY=$(word 32)
API_SECRET=$(word 48)
JWT_SECRET=$(word 48)
DB_PASSWORD=$(word 24)
ADMIN_PASSWORD=$(word 12)
END

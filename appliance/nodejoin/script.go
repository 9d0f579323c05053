package nodejoin

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/workers"
)

// plainServer is an address that needs no quotes in a shell.
var plainServer = regexp.MustCompile(`^https://[A-Za-z0-9.:\[\]-]+$`)

const (
	addressMark = "@NODE_IP@" // in a file of a script, for the address that is known on the machine only
	endOfFile   = "END_OF_FILE"

	// resolved is a resolver's configuration without the local stub, which pods cannot reach.
	resolved = "/run/systemd/resolve/resolv.conf"
)

// A Script makes a machine a worker node as Prepare and Write do, without kthwd on it. It is a
// secret: it has the token. The person who gives it to the machine vouches for the CA in it.
type Script struct {
	Options        // with a Name
	CA      []byte // PEM, of the CAs that the machine is to trust
	Cluster workers.Cluster
	Expires time.Time // of the token
}

// Text returns the script, for a POSIX shell.
func (s Script) Text() (string, error) {
	switch {
	case s.Name == "":
		return "", advice.With(advice.Usage(errors.New("a script is for one node")), "name it with --name")
	case !plainServer.MatchString(s.Server):
		return "", advice.Usage(fmt.Errorf("--server %q: want https://HOST:PORT", s.Server))
	}
	if err := workers.CheckName(s.Name); err != nil {
		return "", advice.With(advice.Usage(err), "choose another with --name")
	}
	if err := s.Files.check(); err != nil {
		return "", err
	}
	f := found{ca: s.CA, cluster: s.Cluster}
	bootstrap, err := bootstrapKubeconfig(s.Options, s.Files.CA)
	if err != nil {
		return "", err
	}
	at := s.Options
	at.Files.NodeIP = addressMark
	values := strings.NewReplacer("{NAME}", s.Name, "{SERVER}", s.Server, "{EXPIRES}", s.Expires.UTC().Format(time.RFC3339),
		"{DIR}", s.Files.KubeletDir, "{KUBECONFIG}", s.Files.kubeconfig(), "{CA}", s.Files.CA, "{BOOTSTRAP}", s.Files.bootstrap(),
		"{CONFIG}", s.Files.config(), "{UNIT}", s.Files.Unit, "{KUBELET}", s.Files.Kubelet, "{RESOLVED}", resolved, "{MARK}", addressMark,
		"{FILES}", heredoc("ca.pem", s.CA)+heredoc("bootstrap", bootstrap)+heredoc("config", kubeletConfig(s.Options, f))+
			heredoc("unit", unit(s.Options))+heredoc("unit-at", unit(at)))
	return values.Replace(script), nil
}

// heredoc has the shell write a file into $dir.
func heredoc(name string, data []byte) string {
	if !bytes.HasSuffix(data, []byte("\n")) {
		data = append(bytes.Clone(data), '\n')
	}
	return fmt.Sprintf("cat >\"$dir/%s\" <<'%s'\n%s%s\n", name, endOfFile, data, endOfFile)
}

// script is the text, with marks in braces. ROOT is put before each path that is written: for a test,
// and for the image of a machine.
const script = `#!/bin/sh
# Makes this machine the worker node {NAME} of the cluster at {SERVER}, up to the start of its
# kubelet. Made by kthwd node token create --script; run it as root. It holds a token, which is a
# secret until {EXPIRES}. NODE_IP=ADDRESS gives the node that address; without it
# the kubelet finds one.
set -eu
umask 077

refuse() {
	echo "error: $1" >&2
	echo "hint: $2" >&2
	exit 1
}

root=${ROOT-}
ip=${NODE_IP-}
case $ip in
*[!0-9a-fA-F.:]*) refuse "NODE_IP=$ip is no address" "give it one by which others reach this machine" ;;
esac

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

{FILES}
if [ -e {RESOLVED} ]; then
	echo 'resolvConf: {RESOLVED}' >>"$dir/config"
fi
if [ -n "$ip" ]; then
	sed "s/{MARK}/$ip/" "$dir/unit-at" >"$dir/unit"
fi

# Everything is looked at before anything is written.
if [ -e "$root{KUBECONFIG}" ]; then
	refuse "{KUBECONFIG} exists: this machine is a node already" \
		"to join it anew, stop the kubelet, run kthwd node remove {NAME} on a controller, and move {DIR} away"
fi
same() {
	if [ -e "$root$2" ] && ! cmp -s "$dir/$1" "$root$2"; then
		refuse "$2 exists, and is another file" "move it away"
	fi
}
same ca.pem {CA}
same config {CONFIG}
same unit {UNIT}
if command -v curl >/dev/null; then
	# -q reads no .curlrc, which could switch the verification off.
	curl -q --silent --show-error --fail --noproxy '*' --max-time 15 --cacert "$dir/ca.pem" --output /dev/null {SERVER}/livez || refuse \
		"the server at {SERVER} does not answer, or is none of the cluster's: somebody is in between, or this machine's clock is wrong" \
		"see the line above; nothing was written"
else
	echo "curl is missing: the cluster is not tried before the kubelet does" >&2
fi

put() {
	if cmp -s "$dir/$1" "$root$2" 2>/dev/null; then
		return
	fi
	mkdir -p -m 755 "$(dirname "$root$2")"
	cp "$dir/$1" "$root$2.join"
	chmod "$3" "$root$2.join"
	mv "$root$2.join" "$root$2"
	echo "made  $2"
}
put ca.pem {CA} 644
put bootstrap {BOOTSTRAP} 600
put config {CONFIG} 644
put unit {UNIT} 644

if [ ! -x "$root{KUBELET}" ]; then
	echo "{KUBELET} does not exist: install the kubelet there" >&2
fi
echo "Before the token expires, start the kubelet:"
echo
echo "  systemctl daemon-reload && systemctl enable --now kubelet"
`

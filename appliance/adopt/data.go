package adopt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
	utilversion "k8s.io/apimachinery/pkg/util/version"

	"kthwd/appliance/advice"
	"kthwd/appliance/backup/verify"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/paths"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/version"
)

// member is an etcd member in the data.
type member = etcdfiles.StoredMember

// data checks the version of Kubernetes, and etcd's data without an etcd.
func (p *planner) data(ctx context.Context) {
	p.kubernetesVersion(ctx)
	if dir, usable := p.backend(); usable {
		p.member(dir)
		p.secrets(ctx, dir)
	}
}

// backend checks etcd's database, and returns the directory of the member in it.
func (p *planner) backend() (dir string, usable bool) {
	for _, r := range p.m.Running {
		if r.Name == program.Etcd {
			p.running(fmt.Sprintf("process %d", r.PID))
			return "", false
		}
	}
	if p.Plan.EtcdDir == "" {
		return "", false
	}
	dir = filepath.Join(p.Plan.EtcdDir, "member")
	b, err := etcdfiles.ReadBackend(dir)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		p.running("a process that holds " + filepath.Join(dir, "snap", "db"))
		return "", false
	case errors.Is(err, fs.ErrNotExist):
		p.refuse(fmt.Errorf("%s holds no data of etcd", p.Plan.EtcdDir), "if they are on a disk that is not mounted, mount it; correct etcd's --data-dir; an empty kthwd needs no adoption")
		return "", false
	case errors.Is(err, fs.ErrPermission):
		p.refuse(err, "run this as root")
		return "", false
	case err != nil:
		p.Problems = append(p.Problems, etcdfiles.Unusable(p.Plan.EtcdDir, err))
		return "", false
	}
	if !p.etcdVersion(b) {
		return "", false
	}
	if err := etcdfiles.Check(p.Plan.EtcdDir); err != nil {
		p.Problems = append(p.Problems, etcdfiles.Unusable(p.Plan.EtcdDir, err))
		return "", false
	}
	return dir, true
}

func (p *planner) running(what string) {
	p.refuse(fmt.Errorf("etcd still runs: %s. Its data are checked while it is stopped, and two etcds must not have them", what),
		"stop it and run this again; the API is away until kthwd is ready. To go back, start the four programs as before")
}

// etcdVersion refuses data that the etcd in this binary cannot open.
func (p *planner) etcdVersion(b etcdfiles.Backend) bool {
	was := b.Version()
	steps, known := minors(was, version.Linked().Etcd)
	switch {
	case !known || steps > 1:
		p.refuse(fmt.Errorf("%s is of etcd %s, and etcd %s takes over data of the minor before it", p.Plan.EtcdDir, orOlder(was), version.Linked().Etcd),
			"upgrade etcd one minor at a time first, each with a snapshot: https://etcd.io/docs/latest/upgrades/")
		p.compareMembership(was)
		return false
	case steps < 0:
		p.refuse(fmt.Errorf("%s is of etcd %s, which is newer than the %s in this kthwd: there is no way back", p.Plan.EtcdDir, was, version.Linked().Etcd), "take a newer kthwd")
		return false
	}
	p.checked("etcd's data in %s: of version %s, and this kthwd has %s", p.Plan.EtcdDir, was, version.Linked().Etcd)
	return true
}

// compareMembership refuses data of etcd 3.5 that its own bugs have spoilt, before the next
// minor of etcd believes them.
func (p *planner) compareMembership(was string) {
	if !etcdfiles.IsBefore36(was) {
		return
	}
	if err := etcdfiles.CompareMembership(pki.Layout{Dir: p.cfg.DataDir, EtcdDir: p.Plan.EtcdDir}, p.args[program.Etcd]); err != nil {
		p.Problems = append(p.Problems, err)
	}
}

func orOlder(v string) string {
	if v == "" {
		return "3.4 or older"
	}
	return v
}

// minors is how many minor versions is follows was.
func minors(was, is string) (steps int, known bool) {
	a, err := utilversion.ParseGeneric(was)
	b, err2 := utilversion.ParseGeneric(is)
	if err != nil || err2 != nil {
		return 0, false
	}
	return (int(b.Major())-int(a.Major()))*1000 + int(b.Minor()) - int(a.Minor()), true
}

// member finds this machine's member in the data, and its peers.
func (p *planner) member(dir string) {
	wal := p.WAL
	if wal == "" {
		wal = filepath.Join(dir, "wal")
	}
	ids, err := etcdfiles.ReadIDs(wal)
	if err != nil {
		p.Problems = append(p.Problems, etcdfiles.Unusable(p.Plan.EtcdDir, err))
		return
	}
	members, revision, err := etcdfiles.ReadStore(dir)
	if err != nil {
		p.Problems = append(p.Problems, etcdfiles.Unusable(p.Plan.EtcdDir, err))
		return
	}
	i := slices.IndexFunc(members, func(m member) bool { return m.ID == ids.Member })
	if i < 0 {
		p.refuse(fmt.Errorf("%s is of member %s, which the cluster has removed", p.Plan.EtcdDir, ids.Member), "adopt a controller whose etcd is a member; this one can join it then: kthwd member add")
		return
	}
	own := members[i]
	p.checked("etcd member %s (%s), peer URL %s, revision %d, %d members in the cluster", own.Name, own.ID, strings.Join(own.PeerURLs, ","), revision, len(members))
	if own.Name != "" && own.Name != p.cfg.Name {
		p.note("etcd's data call the member %s, and the flag calls it %s: etcd takes the flag's", own.Name, p.cfg.Name)
	}
	peer := "https://" + net.JoinHostPort(p.cfg.AdvertiseAddress, strconv.Itoa(p.cfg.EtcdPeerPort))
	if !slices.Contains(own.PeerURLs, peer) {
		text := fmt.Errorf("the peer URL of this member is %s, and kthwd's would be %s", strings.Join(own.PeerURLs, ","), peer)
		if len(members) > 1 {
			p.refuse(text, fmt.Sprintf("while the old etcd runs, with TLS for peers: etcdctl member update %s --peer-urls=%s", own.ID, peer))
		} else {
			p.note("%v: a member that is alone needs none, and its start changes it", text)
		}
	}
	p.others(members)
}

// others writes the list of members, and refuses those that would not know each other.
func (p *planner) others(members []member) {
	if len(members) < 2 {
		return
	}
	var list []string
	for _, m := range members {
		if us := urls(strings.Join(m.PeerURLs, ",")); len(us) > 0 {
			list = append(list, quote(m.Name+"="+us[0].Hostname()))
		}
	}
	slices.Sort(list)
	p.setKey("initial-cluster", "["+strings.Join(list, ", ")+"]")
	l := p.layout()
	cert := pki.StageOf(l).Files(l).Cert
	if names, err := pki.Controllers(cert); err == nil && len(names.Hosts) == 0 && !slices.Equal(names.CommonNames, []string{"kubernetes"}) {
		p.refuse(fmt.Errorf("%s names this machine only (%s): kthwd's etcd tells the members of a cluster of %d from workers by a name that all have", cert, strings.Join(names.CommonNames, ","), len(members)),
			"give every etcd a certificate with the common name kubernetes first: kthwd pki controller NAME ADDRESS makes one where the CA's key is")
	}
	p.note("the other %d controllers stay as they are; adopt one after the other, each when kthwd status on the one before says ready", len(members)-1)
}

// secrets opens what the API server has encrypted.
func (p *planner) secrets(ctx context.Context, dir string) {
	file := ""
	if p.value(program.APIServer, "encryption-provider-config") != "" {
		file = p.layout().EncryptionConfig()
	}
	prefix := p.value(program.APIServer, "etcd-prefix")
	if prefix == "" {
		prefix = "/registry"
	}
	s, err := verify.OpenStored(ctx, dir, "/"+strings.Trim(prefix, "/"), file)
	if err != nil {
		hint, ok := advice.Of(err)
		if !ok {
			hint = wayToFile(err)
		}
		p.refuse(err, hint)
		return
	}
	p.checked("secrets: %d were decrypted with %s, %d are not encrypted, %d need a key management service", s.Opened, orNone(file), s.Plain, s.Service)
}

func orNone(s string) string {
	if s == "" {
		return "no key"
	}
	return s
}

var versionIn = regexp.MustCompile(`v\d+\.\d+\.\d+`)

// AskVersion asks a program of Kubernetes for its version. The name of a program may come from a process,
// which names itself as it likes: nothing is executed that another user could have written.
func AskVersion(ctx context.Context, exe string) (string, error) {
	path, err := filepath.EvalSymlinks(exe)
	if err != nil {
		return "", err
	}
	switch at, err := paths.Written(path); {
	case err != nil:
		return "", err
	case at != "":
		return "", fmt.Errorf("%s is not asked, since other users can write %s", exe, at)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Args[0] = exe // a link may be one of several programs by its name
	cmd.Env, cmd.WaitDelay = []string{}, time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", exe, err)
	}
	return versionIn.FindString(string(out)), nil
}

// kubernetesVersion refuses objects of a Kubernetes that this one must not follow.
func (p *planner) kubernetesVersion(ctx context.Context) {
	api := p.program[program.APIServer]
	was, how := p.o.Was, "as --was says"
	if was == "" {
		was, how = api.Version, "as the image says"
	}
	unknown := errors.New("the version of Kubernetes that served the data is not known")
	if was == "" && p.o.Versions != nil && filepath.IsAbs(api.Exe) {
		v, err := p.o.Versions(ctx, api.Exe)
		if err == nil {
			was, how = v, "as "+api.Exe+" says"
		} else {
			unknown = fmt.Errorf("%w: %w", unknown, err)
		}
	}
	now := version.Linked().Kubernetes
	steps, known := minors(was, now)
	switch {
	case !known:
		p.refuse(unknown, "name it: --was=v1.NN.N, as kubectl version says")
	case steps < 0:
		p.refuse(fmt.Errorf("the data were served by Kubernetes %s, which is newer than the %s in this kthwd: there is no way back", was, now), "take a kthwd with that Kubernetes")
	case steps > 1:
		p.refuse(fmt.Errorf("the data were served by Kubernetes %s, and this kthwd has %s: a minor must not be skipped", was, now), "upgrade the four programs one minor at a time first; or adopt with a kthwd of the next minor, and upgrade that")
	default:
		p.checked("Kubernetes: %s, %s, and this kthwd has %s", was, how, now)
	}
}

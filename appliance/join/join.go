// Package join makes this machine a controller of a running cluster.
//
// Join runs once, offline, as "kthwd join": it takes a token, fetches the shared
// files from a controller, makes this machine's own certificates, requests admission
// as a learner, and writes the configuration for the first start. It blocks until that
// is done, and starts nothing.
//
// After a failure at any moment, Join with the same token in the same directory
// continues where the last attempt ended. Before it changes the membership, it refuses a
// data directory that holds another member's data, unless Options.ReplaceData is set,
// and a machine whose ports are in use.
//
// The other side of the conversation is in package membership, the messages in
// package member.
package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/preflight"
	"kthwd/appliance/version"
)

// Options is the input of Join.
type Options struct {
	Token   string
	Version string        // kthwd's own
	Config  config.Config // as set on this machine; Configure completes its Controller

	// Configure returns the complete, valid configuration of this controller, made of
	// the cluster's settings and this machine's.
	Configure func(member.Files) (config.Controller, error)

	// ReplaceData moves existing etcd data and an existing kthwd.yaml aside. Without it,
	// Join refuses them.
	ReplaceData bool

	Say func(line string) // receives each completed step, for a person; must not be nil
}

// Joined describes a controller that is ready to start.
type Joined struct {
	File     string // its configuration
	Name     string
	Within   time.Duration // the time in which it must be started
	Server   string        // HOST:PORT of its API server
	Warnings []string
}

// Join makes the data directory of another controller of a running cluster, and adds
// the controller to the cluster as a learner. It refuses everything that it can refuse
// before the cluster changes, and keeps the files written until then for the next attempt.
func Join(ctx context.Context, l pki.Layout, o Options) (Joined, error) {
	token, err := member.ParseToken(o.Token)
	if err != nil {
		return Joined{}, err
	}
	if err := datadir.Usable(l); err != nil {
		return Joined{}, err
	}
	lock, err := datadir.Lock(l)
	if err != nil {
		return Joined{}, err
	}
	defer lock.Close()
	defer lock.Truncate(0)
	j := &joiner{layout: l, o: o, client: member.Client{
		Token: token, Versions: version.Member(o.Version), Waiting: func(why string) { o.Say("waiting  " + why) },
	}}
	if err := j.resume(); err != nil {
		return Joined{}, err
	}
	if err := j.checkEmpty(); err != nil {
		return Joined{}, err
	}
	if err := j.fetch(ctx); err != nil {
		return Joined{}, err
	}
	if err := j.admit(ctx); err != nil {
		return Joined{}, err
	}
	return j.writeConfig()
}

// joiner is the state of one run of Join.
type joiner struct {
	layout   pki.Layout
	o        Options
	client   member.Client
	cfg      config.Controller
	peers    []member.Peer
	admitted member.Admitted
	warnings []string
	resumed  bool // an earlier run used this token
}

// resume reads the joiner's name from an earlier run with the same token, or makes one and
// stores it. Once the token is in use, the cluster answers only the joiner of that name.
func (j *joiner) resume() error {
	path := j.layout.JoinRecord()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if id, name, _ := strings.Cut(strings.TrimSpace(string(data)), " "); id == j.client.Token.ID && member.IsJoiner(name) {
		j.client.Joiner, j.resumed = name, true
		return nil
	}
	j.client.Joiner = member.NewJoiner()
	return durable.Write(path, []byte(j.client.Token.ID+" "+j.client.Joiner+"\n"), 0o600)
}

func (j *joiner) file() string { return filepath.Join(j.layout.Dir, config.FileName) }

// checkEmpty refuses a directory that already belongs, or belonged, to a controller.
func (j *joiner) checkEmpty() error {
	if j.o.ReplaceData {
		return nil
	}
	paths := []string{filepath.Join(j.layout.Etcd(), "member")}
	if !j.resumed { // a resumed run may have written the file itself
		paths = append(paths, j.file())
	}
	const hint = "a controller that was removed joins again with --replace-data, which moves it aside; otherwise choose another --data-dir"
	for _, path := range paths {
		if datadir.Exists(path) {
			_ = datadir.ForgetJoin(j.layout) // the refusal is what counts
			return advice.With(fmt.Errorf("%s is there already: this directory is, or was, a controller's", path), hint)
		}
	}
	return nil
}

// fetch adds the shared files and this machine's own certificates to the directory.
func (j *joiner) fetch(ctx context.Context) error {
	needs, err := j.needs(pki.NameKubernetes, j.layout.CAKey())
	if err != nil {
		return err
	}
	needsEtcd, err := j.needs(pki.NameEtcd, j.layout.EtcdCAKey())
	if err != nil {
		return err
	}
	asked := time.Now()
	files, err := j.client.Files(ctx, needs, needsEtcd)
	if err != nil {
		return err
	}
	if skew := member.SkewWarning(files.Now, asked, time.Now()); skew != "" {
		j.warnings = append(j.warnings, skew)
	}
	if err := j.sameCAs(files); err != nil {
		return err
	}
	j.peers = files.Peers
	if j.cfg, err = j.o.Configure(files); err != nil {
		return err
	}
	if err := preflight.Ports(j.cfg, j.o.Config.MetricsAddress); err != nil {
		return notHere(err, files)
	}
	j.client.Local = files.Address // preflight.Ports has listened on it
	if args := files.Settings.Arguments; len(args) > 0 {
		j.warnings = append(j.warnings, "the other controllers are given arguments that are not taken over; if all need them, write them into the file: "+strings.Join(args, ", "))
	}
	shared := pki.Shared{Files: files.Files, Admin: files.Admin}
	report, err := shared.Adopt(j.layout, j.cfg.LocalServer())
	if err != nil {
		return err
	}
	made, err := pki.Ensure(j.layout, j.cfg.PKISpec())
	j.warnings = append(j.warnings, made.Warnings...)
	if n := len(report.Created) + len(made.Created); n > 0 {
		j.o.Say(fmt.Sprintf("fetched  %d files into %s", n, j.layout.Dir))
	}
	return err
}

// needs reports whether the cluster must issue the certificate: it is not here, and the key
// of its CA is not here either.
func (j *joiner) needs(name, caKey string) (bool, error) {
	has, err := pki.FinishCertificate(j.layout, name)
	return !has && !datadir.Exists(caKey), err
}

// sameCAs refuses a directory with a CA of etcd's own for a cluster that has none: its
// etcd would show a certificate that no member accepts.
func (j *joiner) sameCAs(f member.Files) error {
	if _, own := f.Files[filepath.Base(j.layout.EtcdCA())]; own {
		return nil
	}
	for _, path := range []string{j.layout.EtcdCA(), j.layout.Cert(pki.NameEtcd), j.layout.Key(pki.NameEtcd)} {
		if datadir.Exists(path) {
			return advice.With(fmt.Errorf("%s is here, but etcd in the cluster uses the cluster's CA and would refuse this controller", path),
				"move etcd-ca.pem, etcd.pem and their keys away here; or give the cluster a CA of etcd's own first: kthwd pki split-etcd-ca on each controller")
		}
	}
	return nil
}

// notHere names the address if this machine does not have it.
func notHere(err error, f member.Files) error {
	if !errors.Is(err, syscall.EADDRNOTAVAIL) {
		return err
	}
	return advice.With(fmt.Errorf("the token is for a controller at %s, which is not an address of this machine", f.Address),
		fmt.Sprintf("on a controller: kthwd member add %s ADDRESS, with one of those that ip address lists here", f.Name))
}

// admit listens on the peer port while the cluster dials back, and becomes a learner.
func (j *joiner) admit(ctx context.Context) error {
	tlsConfig, err := pki.ClientTLS(j.layout)
	if err != nil {
		return err
	}
	if err := j.reachPeers(ctx, tlsConfig.Clone()); err != nil {
		return err
	}
	tlsConfig.ClientCAs, tlsConfig.ClientAuth = tlsConfig.RootCAs, tls.RequireAndVerifyClientCert
	address := net.JoinHostPort(j.cfg.AdvertiseAddress, strconv.Itoa(j.cfg.EtcdPeerPort))
	listener, err := tls.Listen("tcp", address, tlsConfig)
	if err != nil {
		return advice.With(err, preflight.PortHint(err, address, "--etcd-peer-port"))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+member.DialPath+j.client.Token.ID, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, j.client.Joiner) })
	server := &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(listener) // ends with Close
	defer server.Close()
	j.admitted, err = j.client.Admit(ctx, j.cfg.EtcdPeerPort)
	return err
}

// reachPeers connects to the peer port of every member, because etcd here has to reach them
// all. The error names all that cannot be reached.
func (j *joiner) reachPeers(ctx context.Context, conf *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	failures := make([]string, len(j.peers))
	var dials sync.WaitGroup
	for i, p := range j.peers {
		dials.Go(func() {
			u, err := url.Parse(p.URL)
			if err == nil {
				var conn net.Conn
				if conn, err = (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", u.Host); err == nil {
					conn.Close()
				}
			}
			if err != nil {
				failures[i] = fmt.Sprintf("this machine cannot reach the etcd peer port of %s: %v", p.Name, err)
			}
		})
	}
	dials.Wait()
	failures = slices.DeleteFunc(failures, func(f string) bool { return f == "" })
	if len(failures) == 0 {
		return nil
	}
	return advice.With(errors.New(strings.Join(failures, "; ")),
		fmt.Sprintf("open that port there for %s; the token remains valid", j.cfg.AdvertiseAddress))
}

// writeConfig moves existing data aside and writes the configuration.
func (j *joiner) writeConfig() (Joined, error) {
	stamp := time.Now().UTC().Format("20060102T150405Z")
	for _, m := range []struct{ from, to string }{
		{filepath.Join(j.layout.Etcd(), "member"), filepath.Join(j.layout.Etcd(), ".member."+stamp)},
		{j.file(), j.file() + "." + stamp},
	} {
		if !datadir.Exists(m.from) {
			continue
		}
		if err := os.Rename(m.from, m.to); err != nil {
			return Joined{}, err
		}
		j.o.Say(fmt.Sprintf("moved    %s to %s", m.from, m.to))
	}
	if err := datadir.Forget(j.layout); err != nil {
		return Joined{}, err
	}
	j.cfg.InitialClusterState = config.StateExisting
	j.cfg.InitialCluster = nil
	for _, m := range j.admitted.Members {
		j.cfg.InitialCluster = append(j.cfg.InitialCluster, m.String())
	}
	whole := j.o.Config
	whole.Controller = j.cfg
	if err := durable.Write(j.file(), config.JoinedFile(whole), 0o640); err != nil {
		return Joined{}, err
	}
	j.o.Say("wrote    " + j.file())
	return Joined{
		File: j.file(), Name: j.cfg.Name, Within: j.admitted.Within, Warnings: j.warnings,
		Server: net.JoinHostPort(j.cfg.AdvertiseAddress, strconv.Itoa(j.cfg.SecurePort)),
	}, nil
}

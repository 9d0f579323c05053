package controllers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"

	"kthwd/appliance/durable"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
)

// Live is a kubeconfig whose clients take over a new certificate, and new CAs, while they run.
// Upstream reads a certificate that a kubeconfig contains once, and one in a file again and again
// (client-go/transport/cert_rotation.go and ca_rotation.go): so Live puts them into files. Make one with NewLive.
type Live struct {
	from, dir string
	log       *slog.Logger
	seen      string     // of from, when it was last read; used by Follow
	mu        sync.Mutex // held while the files are written
	cas       []byte     // at the first write
}

// liveLook is the time between two looks at the kubeconfig.
var liveLook = 5 * time.Second

// ReadCertificatesEvery makes clients look for new certificates more often than every 5
// minutes, and servers more often than every minute, should they miss a change. Call it before the first client is made.
func ReadCertificatesEvery(d time.Duration) {
	liveLook, transport.CertCallbackRefreshDuration, dynamiccertificates.FileRefreshDuration = d, d, d
}

// CertificatesWithin is the time in which servers use a certificate whose file was replaced, also if they
// miss the change: with a margin for a slow machine.
func CertificatesWithin() time.Duration {
	return dynamiccertificates.FileRefreshDuration + 5*time.Second
}

// NewLive prepares the kubeconfig from. Its files in dir are secret. It does no I/O.
func NewLive(from, dir string, log *slog.Logger) *Live { return &Live{from: from, dir: dir, log: log} }

// Path returns a kubeconfig for clients: that of dir, or the original if there is no embedded
// certificate to follow.
func (l *Live) Path() string {
	if l == nil {
		return ""
	}
	path, err := l.write()
	if err != nil {
		l.log.Debug("a kubeconfig is used as it is", "file", l.from, "err", err)
		return l.from
	}
	return path
}

// Refresh writes the certificate and the CAs anew, if the kubeconfig was replaced.
func (l *Live) Refresh() {
	if _, err := l.write(); err != nil {
		l.log.Warn("a changed kubeconfig is not used yet", "file", l.from, "err", err)
	}
}

// Follow writes the certificate and the CAs anew after each change of the kubeconfig, until ctx ends.
// Clients have it within transport.CertCallbackRefreshDuration, 5 minutes.
func (l *Live) Follow(ctx context.Context) {
	l.seen = l.stamp()
	for ctx.Err() == nil {
		supervise.Sleep(ctx, liveLook)
		now := l.stamp()
		if now == l.seen || ctx.Err() != nil {
			continue
		}
		l.seen = now
		if _, err := l.write(); err != nil {
			l.log.Warn("a changed kubeconfig is not used yet", "file", l.from, "err", err)
			continue
		}
		l.log.Info("the certificate of a kubeconfig is used from now on", "file", l.from)
	}
}

func (l *Live) stamp() string {
	info, err := os.Stat(l.from)
	if err != nil {
		return ""
	}
	return info.ModTime().String()
}

var errNothingEmbedded = errors.New("it contains no client certificate with its key")

// write writes the certificate with its key, in one file so that they always fit, and the
// kubeconfig that names it.
func (l *Live) write() (path string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	config, err := clientcmd.LoadFromFile(l.from)
	if err != nil {
		return "", err
	}
	if err := clientcmd.ResolveLocalPaths(config); err != nil {
		return "", err
	}
	context := config.Contexts[config.CurrentContext]
	if context == nil || config.AuthInfos[context.AuthInfo] == nil {
		return "", errNothingEmbedded
	}
	user := config.AuthInfos[context.AuthInfo]
	if len(user.ClientCertificateData) == 0 || len(user.ClientKeyData) == 0 {
		return "", errNothingEmbedded
	}
	name := l.nameFor(config.Clusters[context.Cluster])
	pair := filepath.Join(l.dir, name+"-client.pem")
	pem := slices.Concat(user.ClientCertificateData, []byte("\n"), user.ClientKeyData)
	user.ClientCertificate, user.ClientKey, user.ClientCertificateData, user.ClientKeyData = pair, pair, nil, nil
	if cluster := config.Clusters[context.Cluster]; cluster != nil && len(cluster.CertificateAuthorityData) > 0 {
		cas := filepath.Join(l.dir, name+"-ca.pem")
		if err := durable.Write(cas, cluster.CertificateAuthorityData, 0o600); err != nil {
			return "", err
		}
		cluster.CertificateAuthority, cluster.CertificateAuthorityData = cas, nil
	}
	data, err := clientcmd.Write(*config)
	if err != nil {
		return "", err
	}
	path = filepath.Join(l.dir, filepath.Base(l.from))
	return path, errors.Join(durable.Write(pair, pem, 0o600), durable.Write(path, data, 0o600))
}

// nameFor begins the names of the files. With other CAs than at first it is another one: client-go
// looks for new CAs in a file every 5 minutes only, and takes a client that names the same files
// for the same as before (client-go/transport/cache.go). The clients of a new term have the CAs at once so.
func (l *Live) nameFor(cluster *clientcmdapi.Cluster) string {
	name := strings.TrimSuffix(filepath.Base(l.from), ".kubeconfig")
	if cluster == nil {
		return name
	}
	if l.cas == nil {
		l.cas = slices.Clone(cluster.CertificateAuthorityData)
	}
	if bytes.Equal(l.cas, cluster.CertificateAuthorityData) {
		return name
	}
	sum := sha256.Sum256(cluster.CertificateAuthorityData)
	return name + "-" + hex.EncodeToString(sum[:4])
}

// leaseClient is the client of a lease. Its connections end with hangUp.
type leaseClient struct {
	build func() (*rest.Config, error)
	log   *slog.Logger

	current     *rest.Config
	connections []*upstream.Connections
}

// newLeaseClient makes the first client, from the kubeconfig that is used in the place of that path.
func (c *common) newLeaseClient(master, kubeconfig string) (*leaseClient, error) {
	l := &leaseClient{log: c.log, build: func() (*rest.Config, error) {
		return clientcmd.BuildConfigFromFlags(master, c.live.of(kubeconfig))
	}}
	first, err := l.build()
	if err != nil {
		return nil, err
	}
	l.use(first)
	return l, nil
}

func (l *leaseClient) use(config *rest.Config) {
	l.current = config
	l.connections = append(l.connections, upstream.ConnectionsOf(config)) // which keeps them until hangUp
}

// forTerm is the client of the next term: another one than before only if the CAs are others.
func (l *leaseClient) forTerm() *rest.Config {
	next, err := l.build()
	switch {
	case err != nil:
		l.log.Warn("the kubeconfig is used as it was", "err", err)
	case next.CAFile != l.current.CAFile:
		l.use(next)
	}
	return l.current
}

func (l *leaseClient) hangUp() {
	for _, c := range l.connections {
		c.HangUp()
	}
}

// kubeconfigFlags are those of kube-controller-manager and kube-scheduler that name one.
var kubeconfigFlags = []string{"kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"}

// in returns a command line with the live kubeconfig in place of the original.
func (l *Live) in(args []program.Arg) []program.Arg {
	args = slices.Clone(args)
	for i, a := range args {
		if l != nil && slices.Contains(kubeconfigFlags, a.Key) && a.Value == l.from {
			args[i].Value = l.Path()
		}
	}
	return args
}

// of returns the live kubeconfig for the original, and any other path as it is.
func (l *Live) of(path string) string {
	if l == nil || path != l.from {
		return path
	}
	return l.Path()
}

// inSchedulerConfig returns the path of a copy of a scheduler's configuration file with the
// live kubeconfig, or file itself if it names another one.
func (l *Live) inSchedulerConfig(file string) (string, error) {
	if l == nil || file == "" {
		return file, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return file, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return file, nil // upstream says it better
	}
	node := field(field(&doc, "clientConnection"), "kubeconfig")
	if node == nil || node.Value != l.from {
		return file, nil
	}
	node.Value = l.Path()
	if node.Value == l.from {
		return file, nil
	}
	if data, err = yaml.Marshal(&doc); err != nil {
		return file, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	path := filepath.Join(l.dir, "kube-scheduler-live.yaml")
	return path, durable.Write(path, data, 0o600)
}

// field returns the value of a mapping's key; nil if there is none.
func field(n *yaml.Node, key string) *yaml.Node {
	if n != nil && n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

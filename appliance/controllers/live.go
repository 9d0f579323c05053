package controllers

import (
	"context"
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
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"

	"kthwd/appliance/durable"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
)

// Live is a kubeconfig whose clients take over a new certificate while they run. Upstream
// reads a certificate that a kubeconfig contains once, and one in a file again and again
// (client-go/transport/cert_rotation.go): so Live puts it into a file. Make one with NewLive.
type Live struct {
	from, dir string
	log       *slog.Logger
	seen      string     // of from, when it was last read; used by Follow
	mu        sync.Mutex // held while the files are written
}

// liveLook is the time between two looks at the kubeconfig.
var liveLook = 5 * time.Second

// ReadCertificatesEvery makes clients look for new certificates more often than every 5
// minutes, and servers more often than every minute, should they miss a change. Call it before the first client is made.
func ReadCertificatesEvery(d time.Duration) {
	liveLook, transport.CertCallbackRefreshDuration, dynamiccertificates.FileRefreshDuration = d, d, d
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

// Follow writes the certificate anew after each change of the kubeconfig, until ctx ends.
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
	pair := filepath.Join(l.dir, strings.TrimSuffix(filepath.Base(l.from), ".kubeconfig")+"-client.pem")
	pem := slices.Concat(user.ClientCertificateData, []byte("\n"), user.ClientKeyData)
	user.ClientCertificate, user.ClientKey, user.ClientCertificateData, user.ClientKeyData = pair, pair, nil, nil
	data, err := clientcmd.Write(*config)
	if err != nil {
		return "", err
	}
	path = filepath.Join(l.dir, filepath.Base(l.from))
	return path, errors.Join(durable.Write(pair, pem, 0o600), durable.Write(path, data, 0o600))
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

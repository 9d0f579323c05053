package workers

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"

	"kthwd/appliance/etcd/view"
	"kthwd/appliance/refused"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

const (
	serverPoll  = time.Second
	settle      = 50 * time.Millisecond // several requests often come together
	lookAgain   = 5 * time.Second       // at requests that are pending
	failedPause = 2 * time.Second
	within      = 10 * time.Second // for one decision
	patience    = 30 * time.Second // for what becomes right by itself, before an Event
)

// The uses of certificates.
const (
	useClient   = "client"
	useServing  = "serving"
	useBalancer = "load-balancer"
)

const kindPending = "node_certificate_pending"

// Config configures a Desk.
type Config struct {
	// Client returns the configuration of a privileged client. It fails until there is an
	// API server, and must not block.
	Client func() (*rest.Config, error)

	Etcd     func() *embed.Etcd // nil while it does not run
	Services []netip.Prefix     // the ranges of service addresses

	// Reserved returns the names and addresses in the certificates of all API servers.
	Reserved func(context.Context, *clientv3.Client) ([]string, error)

	// Renews reports whether a client with these groups is a load balancer, which asks for its own
	// next certificate only, and MayRenew says why it does not get that. Nil for none.
	Renews   func(groups []string) bool
	MayRenew func(context.Context, *clientv3.Client, Request) error

	Log *slog.Logger
}

// Desk decides about requests for the certificates of nodes. Make one with New.
type Desk struct {
	cfg      Config
	Removals *refused.List // the nodes that were removed
	approved *prometheus.CounterVec

	mu      sync.Mutex
	pending map[string]string // by name of a request: why it is not approved
	since   time.Time
}

// New makes a Desk. It does no I/O.
func New(cfg Config) *Desk {
	d := &Desk{cfg: cfg, Removals: newRemovals(), pending: map[string]string{}, approved: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kthwd_node_certificates_approved_total", Help: "Requests for certificates of worker nodes, and of load balancers for their discovery, that this controller has approved.",
	}, []string{"use"})}
	for _, use := range []string{useClient, useServing, useBalancer} {
		d.approved.WithLabelValues(use)
	}
	return d
}

// Describe implements prometheus.Collector.
func (d *Desk) Describe(ch chan<- *prometheus.Desc) { d.approved.Describe(ch) }

// Collect implements prometheus.Collector.
func (d *Desk) Collect(ch chan<- prometheus.Metric) { d.approved.Collect(ch) }

// Follow follows the removals until ctx ends, which is not before the API server has gone.
func (d *Desk) Follow(ctx context.Context) { d.Removals.Follow(ctx, d.cfg.Etcd) }

// Run decides until ctx ends.
func (d *Desk) Run(ctx context.Context) {
	var config *rest.Config
	for ctx.Err() == nil && config == nil {
		if config, _ = d.cfg.Client(); config == nil {
			supervise.Sleep(ctx, serverPoll)
		}
	}
	if config == nil {
		return
	}
	config.UserAgent = "kthwd"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		d.cfg.Log.Error("requests for certificates are not decided", "err", err)
		return
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		d.cfg.Log.Error("requests for certificates are not decided", "err", err)
		return
	}
	dirty := make(chan struct{}, 1)
	go follow(ctx, objects, dirty)
	d.decideAll(ctx, client, dirty)
}

// decideAll decides after each change, and again while requests are pending.
func (d *Desk) decideAll(ctx context.Context, client kubernetes.Interface, dirty chan struct{}) {
	var again <-chan time.Time
	for {
		select {
		case <-dirty:
		case <-again:
		case <-ctx.Done():
			return
		}
		supervise.Sleep(ctx, settle)
		again = nil
		left, err := d.round(ctx, client)
		if err != nil && ctx.Err() == nil {
			d.cfg.Log.Warn("requests for certificates are not decided, trying again", "err", err)
		}
		if left > 0 || err != nil {
			again = time.After(lookAgain)
		}
	}
}

// follow marks dirty at each change of a request.
func follow(ctx context.Context, objects metadata.Interface, dirty chan<- struct{}) {
	requests := objects.Resource(schema.GroupVersionResource{Group: certificatesv1.GroupName, Version: "v1", Resource: "certificatesigningrequests"})
	mark := func() {
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	once := func() {
		list, err := requests.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return
		}
		mark()
		w, err := requests.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, AllowWatchBookmarks: true})
		if err != nil {
			return
		}
		defer w.Stop()
		for e := range w.ResultChan() {
			switch e.Type {
			case watch.Added, watch.Modified:
				mark()
			case watch.Error:
				return
			}
		}
	}
	for ctx.Err() == nil {
		once()
		supervise.Sleep(ctx, failedPause)
	}
}

// round decides about all requests that nobody has decided about. It returns how many are left.
func (d *Desk) round(ctx context.Context, client kubernetes.Interface) (left int, err error) {
	list, err := client.CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, err
	}
	todo := slices.DeleteFunc(list.Items, func(csr certificatesv1.CertificateSigningRequest) bool { return !d.ours(&csr) })
	d.forget(todo)
	if len(todo) == 0 {
		return 0, nil
	}
	server := d.cfg.Etcd()
	if server == nil {
		return len(todo), nil
	}
	kv := v3client.New(server.Server)
	defer kv.Close()
	c, err := d.cluster(ctx, client, kv, server)
	if err != nil {
		return len(todo), err
	}
	for i := range todo {
		err := d.decide(ctx, client, kv, c, &todo[i])
		if err != nil {
			left++
			d.leave(ctx, client, &todo[i], err)
		}
	}
	return left, nil
}

// ours reports whether a request waits for a decision of kthwd's. Renewals of client
// certificates are upstream's (pkg/controller/certificates/approver).
func (d *Desk) ours(csr *certificatesv1.CertificateSigningRequest) bool {
	if len(csr.Status.Conditions) > 0 || len(csr.Status.Certificate) > 0 {
		return false
	}
	return d.renews(csr.Spec.Groups) || csr.Spec.SignerName == certificatesv1.KubeletServingSignerName ||
		csr.Spec.SignerName == certificatesv1.KubeAPIServerClientKubeletSignerName && isToken(csr.Spec.Username)
}

func (d *Desk) renews(groups []string) bool { return d.cfg.Renews != nil && d.cfg.Renews(groups) }

func isToken(user string) bool { return strings.HasPrefix(user, bootstrapapi.BootstrapUserPrefix) }

// cluster collects the facts for decisions.
func (d *Desk) cluster(ctx context.Context, client kubernetes.Interface, kv *clientv3.Client, server *embed.Etcd) (cluster, error) {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return cluster{}, err
	}
	reserved, err := d.cfg.Reserved(ctx, kv)
	if err != nil {
		return cluster{}, err
	}
	c := cluster{nodes: nodes.Items, services: d.cfg.Services, reserved: reserved}
	for _, m := range server.Server.Cluster().Members() {
		c.controllers = append(c.controllers, Controller{m.Name, view.PeerHost(m)})
	}
	return c, nil
}

// CredentialKey is where the API server says with which certificate a client has come
// (k8s.io/apiserver/pkg/authentication/user/user.go).
const CredentialKey = "authentication.kubernetes.io/credential-id"

// refusal is a decision against a request.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// decide approves a request, or returns why not.
func (d *Desk) decide(ctx context.Context, client kubernetes.Interface, kv *clientv3.Client, c cluster, csr *certificatesv1.CertificateSigningRequest) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	r, err := requestOf(csr)
	if err != nil {
		return refusal{err}
	}
	if d.renews(r.Groups) {
		if err := d.cfg.MayRenew(ctx, kv, r); err != nil {
			return refusal{err}
		}
		return d.approve(ctx, client, csr, useBalancer, "the load balancer's own certificate is valid")
	}
	if csr.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		name, _ := ofNode(r.Contents)
		var node joined
		if _, err := get(ctx, kv, nodesPrefix+name, &node); err != nil {
			return err
		}
		ranges, err := ParseRanges(node.Ranges)
		if err != nil {
			return refusal{err}
		}
		if _, err := c.checkServing(r, ranges); err != nil {
			return refusal{err}
		}
		if err := d.approve(ctx, client, csr, useServing, "the node's own name and addresses"); err != nil {
			return err
		}
		return useUp(ctx, client, kv, c, node.Token)
	}
	name, info, err := d.first(ctx, client, kv, c, r)
	if err != nil {
		return err
	}
	if err := take(ctx, kv, info, name); err != nil {
		return err
	}
	return d.approve(ctx, client, csr, useClient, "the token "+info.ID+" is good for this node")
}

func requestOf(csr *certificatesv1.CertificateSigningRequest) (Request, error) {
	r := Request{User: csr.Spec.Username, Groups: csr.Spec.Groups, Signer: csr.Spec.SignerName}
	for _, u := range csr.Spec.Usages {
		r.Usages = append(r.Usages, string(u))
	}
	if ids := csr.Spec.Extra[CredentialKey]; len(ids) == 1 {
		r.Credential = ids[0]
	}
	if seconds := csr.Spec.ExpirationSeconds; seconds != nil {
		r.Life = time.Duration(*seconds) * time.Second
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return r, errors.New("it has no PEM block")
	}
	var err error
	r.Contents, err = x509.ParseCertificateRequest(block.Bytes)
	return r, err
}

// Admit refuses a request of a token's bearer or of a load balancer that will not be approved, at
// once, so that the client sees why. It accepts every other request. Run decides the same way later.
func (d *Desk) Admit(ctx context.Context, r Request) error {
	if d.renews(r.Groups) {
		return d.admitRenewal(ctx, r)
	}
	if !isToken(r.User) || !slices.Contains(r.Groups, Group) {
		return nil
	}
	config, err := d.cfg.Client()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	server := d.cfg.Etcd()
	if server == nil {
		return errors.New("etcd does not run")
	}
	kv := v3client.New(server.Server)
	defer kv.Close()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := d.cluster(ctx, client, kv, server)
	if err != nil {
		return err
	}
	_, _, err = d.first(ctx, client, kv, c, r)
	return err
}

func (d *Desk) admitRenewal(ctx context.Context, r Request) error {
	server := d.cfg.Etcd()
	if server == nil {
		return errors.New("etcd does not run")
	}
	kv := v3client.New(server.Server)
	defer kv.Close()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return d.cfg.MayRenew(ctx, kv, r)
}

// first decides about the first certificate of a node.
func (d *Desk) first(ctx context.Context, client kubernetes.Interface, kv *clientv3.Client, c cluster, r Request) (name string, info TokenInfo, err error) {
	id := strings.TrimPrefix(r.User, bootstrapapi.BootstrapUserPrefix)
	secret, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, bootstraputil.BootstrapTokenSecretName(id), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", info, refusal{fmt.Errorf("the token %s no longer exists", id)}
	}
	if err != nil {
		return "", info, err
	}
	if info, err = tokenInfo(secret); err != nil {
		return "", info, refusal{err}
	}
	if info.Expires.Before(time.Now()) {
		return "", info, refusal{fmt.Errorf("the token %s has expired", id)}
	}
	if name, err = c.checkFirst(r, info.Limits); err != nil {
		return name, info, refusal{err}
	}
	var use tokenUse
	if _, err := get(ctx, kv, tokensPrefix+id, &use); err != nil {
		return name, info, err
	}
	if !slices.Contains(use.Nodes, name) && len(use.Nodes) >= info.Nodes {
		return name, info, refusal{usedUp(info, use)}
	}
	var gone removal
	if _, err := get(ctx, kv, removedPrefix+name, &gone); err != nil {
		return name, info, err
	}
	if from := gone.At.Add(backdated); time.Now().Before(from) {
		return name, info, refusal{fmt.Errorf("the node %s was removed at %s; its old certificates are told from new ones by their time: join it after %s", name, gone.At.UTC().Format(time.TimeOnly), from.UTC().Format(time.TimeOnly)+" UTC")}
	}
	return name, info, nil
}

func usedUp(info TokenInfo, use tokenUse) error {
	return fmt.Errorf("the token %s was for %d nodes, and was used by %s", info.ID, info.Nodes, strings.Join(use.Nodes, ", "))
}

// take records that a node uses a token. It fails if another node has used it meanwhile.
func take(ctx context.Context, kv *clientv3.Client, info TokenInfo, name string) error {
	var use tokenUse
	revision, err := get(ctx, kv, tokensPrefix+info.ID, &use)
	if err != nil {
		return err
	}
	if !slices.Contains(use.Nodes, name) {
		if len(use.Nodes) >= info.Nodes {
			return refusal{usedUp(info, use)}
		}
		use.Nodes = append(use.Nodes, name)
	}
	done, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(tokensPrefix+info.ID), "=", revision)).
		Then(put(tokensPrefix+info.ID, use), put(nodesPrefix+name, joined{Token: info.ID, Ranges: texts(info.Ranges), At: time.Now().UTC()})).Commit()
	if err == nil && !done.Succeeded {
		err = errors.New("the token was used by another node at the same time")
	}
	return err
}

// useUp deletes a token when all nodes that it is for have come. Until then a kubelet that
// waits for its certificate needs it.
func useUp(ctx context.Context, client kubernetes.Interface, kv *clientv3.Client, c cluster, id string) error {
	if id == "" {
		return nil
	}
	secret, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, bootstraputil.BootstrapTokenSecretName(id), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := tokenInfo(secret)
	if err != nil {
		return err
	}
	var use tokenUse
	if _, err := get(ctx, kv, tokensPrefix+id, &use); err != nil {
		return err
	}
	here := func(name string) bool {
		return slices.ContainsFunc(c.nodes, func(n corev1.Node) bool { return n.Name == name })
	}
	if len(use.Nodes) < info.Nodes || !all(use.Nodes, here) {
		return nil
	}
	err = DeleteToken(ctx, client, kv, id)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

func all(names []string, good func(string) bool) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return !good(n) })
}

// approve approves a request. Another controller may have done it already.
func (d *Desk) approve(ctx context.Context, client kubernetes.Interface, csr *certificatesv1.CertificateSigningRequest, use, why string) error {
	csr = csr.DeepCopy()
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "KthwdApproved", Message: why,
	})
	_, err := client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	}
	d.approved.WithLabelValues(use).Inc()
	d.cfg.Log.Info("certificate approved", "request", csr.Name, "use", use, "user", csr.Spec.Username, "why", why)
	return nil
}

// leave says why a request stays pending: in an Event, once for each reason, and in a finding.
func (d *Desk) leave(ctx context.Context, client kubernetes.Interface, csr *certificatesv1.CertificateSigningRequest, why error) {
	var refused refusal
	if !errors.As(why, &refused) {
		d.cfg.Log.Warn("no decision about a certificate", "request", csr.Name, "err", why)
		return
	}
	if errors.Is(why, errNotYet) && time.Since(csr.CreationTimestamp.Time) < patience {
		return
	}
	text := why.Error()
	d.mu.Lock()
	known := d.pending[csr.Name] == text
	if len(d.pending) == 0 {
		d.since = time.Now()
	}
	d.pending[csr.Name] = text
	d.mu.Unlock()
	if known {
		return
	}
	d.cfg.Log.Warn("certificate not approved", "request", csr.Name, "user", csr.Spec.Username, "why", text)
	sum := sha256.Sum256([]byte(string(csr.UID) + text))
	at := metav1.Now()
	// The same name on each controller: there is one Event.
	_, err := client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: "kthwd-csr-" + hex.EncodeToString(sum[:8]), Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest", Name: csr.Name, UID: csr.UID},
		Type:           corev1.EventTypeWarning, Reason: "NodeCertificateNotApproved", Message: text, Count: 1,
		FirstTimestamp: at, LastTimestamp: at, Source: corev1.EventSource{Component: "kthwd"},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		d.cfg.Log.Debug("event not written", "err", err)
	}
}

// forget drops the reasons of requests that are no longer pending.
func (d *Desk) forget(todo []certificatesv1.CertificateSigningRequest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.pending {
		if !slices.ContainsFunc(todo, func(csr certificatesv1.CertificateSigningRequest) bool { return csr.Name == name }) {
			delete(d.pending, name)
		}
	}
}

// Findings returns the requests that were not approved. It does not block.
func (d *Desk) Findings() []status.Finding {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.pending) == 0 {
		return nil
	}
	names := make([]string, 0, len(d.pending))
	for name := range d.pending {
		names = append(names, name)
	}
	slices.Sort(names)
	f := status.Finding{Health: status.Healthy, Kind: kindPending, Since: d.since, Do: "kubectl get csr",
		Text: fmt.Sprintf("the certificate request %s is not approved: %s", names[0], d.pending[names[0]])}
	if more := len(names) - 1; more > 0 {
		f.Text += fmt.Sprintf("; and %d more", more)
	}
	return []status.Finding{f}
}

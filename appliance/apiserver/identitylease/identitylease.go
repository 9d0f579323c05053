// Package identitylease renews the Lease by which the API servers of a cluster know each other, in
// place of upstream's loop, which a Lease that cannot be written keeps from ending.
package identitylease

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation"
	apiserverfeatures "k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/utils/ptr"

	"kthwd/appliance/cause"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

const (
	// hookName starts upstream's loop that renews the API server's identity Lease
	// (pkg/controlplane/apiserver/server.go). Only a success ends that loop, and the hook
	// that stops it waits for its lock, so a Lease that cannot be written made a stop hang.
	hookName = "start-kube-apiserver-identity-lease-controller"

	attempt = 5 * time.Second // bounds one request
	retry   = 2 * time.Second // after a failure
	told    = 3               // failures in a row from which it is a finding
)

// Lease keeps the Lease by which other API servers know this one. Its zero value does
// nothing. Upstream's hook that runs before a shutdown deletes the Lease.
type Lease struct {
	ctx  context.Context // ends when the API server leaves
	stop context.CancelFunc
	peer string // HOST:PORT at which other API servers reach this one; "" announces none

	mu     sync.Mutex
	name   string
	failed int
	since  time.Time // of the first failure in a row
	err    error
}

// Replace keeps upstream's loop from being registered. Call the returned function
// with the complete server: it registers kthwd's under the same name.
func (i *Lease) Replace(c *controlplane.Config) (register func(*genericapiserver.GenericAPIServer) error) {
	config := c.Generic
	if !utilfeature.DefaultFeatureGate.Enabled(apiserverfeatures.APIServerIdentity) {
		return func(*genericapiserver.GenericAPIServer) error { return nil }
	}
	i.ctx, i.stop = context.WithCancel(context.Background())
	config.DisabledPostStartHooks.Insert(hookName)
	return func(server *genericapiserver.GenericAPIServer) error {
		config.DisabledPostStartHooks.Delete(hookName)
		if utilfeature.DefaultFeatureGate.Enabled(apiserverfeatures.UnknownVersionInteroperabilityProxy) {
			i.peer = peerAddress(c)
		}
		return server.AddPostStartHook(hookName, func(hook genericapiserver.PostStartHookContext) error {
			client, err := kubernetes.NewForConfig(hook.LoopbackClientConfig)
			if err != nil {
				return err
			}
			i.name = server.APIServerID
			go i.renew(hook, client.CoordinationV1().Leases(metav1.NamespaceSystem))
			return nil
		})
	}
}

// peerAddress is upstream's getPeerAddress (pkg/controlplane/apiserver/peer.go).
func peerAddress(c *controlplane.Config) string {
	if p := c.Extra.PeerAdvertiseAddress; p.PeerAdvertiseIP != "" && p.PeerAdvertisePort != "" {
		return net.JoinHostPort(p.PeerAdvertiseIP, p.PeerAdvertisePort)
	}
	_, port, err := c.Generic.SecureServing.HostPort()
	if err != nil {
		return "" // upstream's server was built, so there is a port
	}
	return net.JoinHostPort(c.Generic.PublicAddress.String(), strconv.Itoa(port))
}

// Leave ends the renewals, before upstream deletes the Lease.
func (i *Lease) Leave() {
	if i.stop != nil {
		i.stop()
	}
}

func (i *Lease) renew(hook context.Context, leases coordinationclient.LeaseInterface) {
	ctx, cancel := context.WithCancel(hook)
	defer cancel()
	defer context.AfterFunc(i.ctx, cancel)()
	holder := i.name + "_" + string(uuid.NewUUID())
	var last *coordinationv1.Lease
	for ctx.Err() == nil {
		renewed, err := i.write(ctx, leases, last, holder)
		if ctx.Err() != nil {
			return
		}
		i.note(err)
		pause := controlplane.IdentityLeaseRenewIntervalPeriod
		last = renewed
		if err != nil {
			last, pause = nil, retry // an empty Lease came with the error: read it again
		}
		supervise.Sleep(ctx, pause)
	}
}

// write renews last, or the Lease that exists, or makes one.
func (i *Lease) write(ctx context.Context, leases coordinationclient.LeaseInterface, last *coordinationv1.Lease, holder string) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	if last == nil {
		found, err := leases.Get(ctx, i.name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			made := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: i.name, Namespace: metav1.NamespaceSystem}}
			i.fill(made, holder)
			return leases.Create(ctx, made, metav1.CreateOptions{})
		case err != nil:
			return nil, err
		}
		last = found
	}
	next := last.DeepCopy()
	i.fill(next, holder)
	return leases.Update(ctx, next, metav1.UpdateOptions{})
}

// fill writes into the Lease what upstream's labelAPIServerHeartbeatFunc does, but
// a host name that is too long for a label is cut: with it, no write would be accepted.
func (i *Lease) fill(l *coordinationv1.Lease, holder string) {
	if l.Labels == nil {
		l.Labels = map[string]string{}
	}
	l.Labels[controlplane.IdentityLeaseComponentLabelKey] = "kube-apiserver"
	if host, err := os.Hostname(); err == nil {
		if label := hostLabel(host); label != "" {
			l.Labels[corev1.LabelHostname] = label
		}
	}
	if i.peer != "" {
		if l.Annotations == nil {
			l.Annotations = map[string]string{}
		}
		l.Annotations[corev1.AnnotationPeerAdvertiseAddress] = i.peer
	}
	l.Spec.HolderIdentity = ptr.To(holder)
	l.Spec.LeaseDurationSeconds = ptr.To(int32(controlplane.IdentityLeaseDurationSeconds))
	l.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
}

// hostLabel returns the host name as the value of a label: its beginning if it is too
// long, "" if it cannot be one.
func hostLabel(host string) string {
	if len(host) > validation.LabelValueMaxLength {
		host = strings.TrimRight(host[:validation.LabelValueMaxLength], "-._")
	}
	if len(validation.IsValidLabelValue(host)) > 0 {
		return ""
	}
	return host
}

func (i *Lease) note(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		i.failed, i.err = 0, nil
		return
	}
	if i.failed == 0 {
		i.since = time.Now()
	}
	i.failed, i.err = i.failed+1, err
}

// Findings has the command of the error's cause, if that is known.
func (i *Lease) Findings(names cause.Names) []status.Finding {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failed < told {
		return nil
	}
	do := "kubectl --kubeconfig " + text.ShellWord(names.Kubeconfig) + " -n kube-system get lease " + i.name + " -o yaml"
	if c, ok := cause.Of(i.err.Error(), names); ok && c.Do != "" {
		do = c.Do
	}
	return []status.Finding{{
		Health: status.Degraded, Kind: "identity_lease", Since: i.since, Do: do,
		Text: fmt.Sprintf("kube-apiserver cannot write its identity Lease kube-system/%s: %s", i.name, text.Line(i.err.Error())),
	}}
}

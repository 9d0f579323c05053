package workers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"

	"kthwd/appliance/advice"
)

// Annotations of a token's Secret, which say what the token is for.
const (
	annotationName   = "kthwd/node-name"
	annotationRanges = "kthwd/node-ranges"
	annotationNodes  = "kthwd/nodes"
)

// The life of a token.
const (
	DefaultTTL = time.Hour
	minTTL     = time.Minute
	maxTTL     = 7 * 24 * time.Hour
	maxNodes   = 1000
)

// Limits say what a token is for.
type Limits struct {
	Nodes  int            `json:"nodes"`            // how many nodes may join with it
	Name   string         `json:"name,omitempty"`   // the only node that may; empty for any
	Ranges []netip.Prefix `json:"ranges,omitempty"` // in which the nodes' addresses must be; none for any
}

// Check reports all limits that make no sense.
func (l Limits) Check(ttl time.Duration) error {
	var errs []error
	if ttl < minTTL || ttl > maxTTL {
		errs = append(errs, fmt.Errorf("--ttl %v: want %v to %v", ttl, minTTL, maxTTL))
	}
	if l.Nodes < 1 || l.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("--nodes %d: want 1 to %d", l.Nodes, maxNodes))
	}
	if l.Name != "" {
		if err := CheckName(l.Name); err != nil {
			errs = append(errs, fmt.Errorf("--name: %w", err))
		}
		if l.Nodes > 1 {
			errs = append(errs, fmt.Errorf("--name with --nodes %d: a name is one node's", l.Nodes))
		}
	}
	return errors.Join(errs...)
}

// ParseToken takes a token apart. The error does not repeat it.
func ParseToken(token string) (id, secret string, err error) {
	if !bootstraputil.IsValidBootstrapToken(token) {
		return "", "", advice.With(errors.New("this is no token: it has six letters or digits, a dot, and sixteen letters or digits"), "copy the line that kthwd node token create has printed")
	}
	id, secret, _ = strings.Cut(token, ".")
	return id, secret, nil
}

// CreateToken makes a token that expires after ttl.
func CreateToken(ctx context.Context, client kubernetes.Interface, l Limits, ttl time.Duration) (token string, expires time.Time, err error) {
	if err := l.Check(ttl); err != nil {
		return "", expires, err
	}
	token, err = bootstraputil.GenerateBootstrapToken()
	if err != nil {
		return "", expires, err
	}
	id, secret, _ := strings.Cut(token, ".")
	expires = time.Now().Add(ttl).UTC().Truncate(time.Second)
	notes := map[string]string{annotationNodes: strconv.Itoa(l.Nodes)}
	if l.Name != "" {
		notes[annotationName] = l.Name
	}
	if len(l.Ranges) > 0 {
		notes[annotationRanges] = strings.Join(texts(l.Ranges), ",")
	}
	_, err = client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: bootstraputil.BootstrapTokenSecretName(id), Annotations: notes},
		Type:       bootstrapapi.SecretTypeBootstrapToken,
		StringData: map[string]string{
			bootstrapapi.BootstrapTokenIDKey:               id,
			bootstrapapi.BootstrapTokenSecretKey:           secret,
			bootstrapapi.BootstrapTokenExpirationKey:       expires.Format(time.RFC3339),
			bootstrapapi.BootstrapTokenUsageAuthentication: "true",
			bootstrapapi.BootstrapTokenUsageSigningKey:     "true",
			bootstrapapi.BootstrapTokenExtraGroupsKey:      Group,
			bootstrapapi.BootstrapTokenDescriptionKey:      "made by kthwd node token create",
		},
	}, metav1.CreateOptions{})
	return token, expires, err
}

// TokenInfo is a token without its secret.
type TokenInfo struct {
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
	Limits
	Used []string `json:"used,omitempty"` // by which nodes
}

// ListTokens returns the tokens for nodes, by expiry.
func ListTokens(ctx context.Context, client kubernetes.Interface, etcd *clientv3.Client) ([]TokenInfo, error) {
	list, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(bootstrapapi.SecretTypeBootstrapToken)})
	if err != nil {
		return nil, err
	}
	all := []TokenInfo{}
	for i := range list.Items {
		info, err := tokenInfo(&list.Items[i])
		if err != nil {
			continue // not one of kthwd's
		}
		var use tokenUse
		if _, err := get(ctx, etcd, tokensPrefix+info.ID, &use); err != nil {
			return nil, err
		}
		info.Used = use.Nodes
		all = append(all, info)
	}
	slices.SortFunc(all, func(a, b TokenInfo) int { return a.Expires.Compare(b.Expires) })
	return all, nil
}

// DeleteToken deletes a token. The nodes that have joined with it stay.
func DeleteToken(ctx context.Context, client kubernetes.Interface, etcd *clientv3.Client, id string) error {
	if !bootstraputil.IsValidBootstrapTokenID(id) {
		return advice.With(advice.Usage(fmt.Errorf("%q is no ID of a token: want six letters or digits", id)), "kthwd node token list shows the IDs")
	}
	err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, bootstraputil.BootstrapTokenSecretName(id), metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return advice.With(fmt.Errorf("there is no token %s: it has expired, was used, or was deleted", id), "kthwd node token list shows those that there are")
	}
	if err != nil {
		return err
	}
	_, err = etcd.Delete(ctx, tokensPrefix+id)
	return err
}

// ForgetTokens deletes the records of tokens that are gone.
func ForgetTokens(ctx context.Context, client kubernetes.Interface, etcd *clientv3.Client) error {
	answer, err := etcd.Get(ctx, tokensPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	for _, kv := range answer.Kvs {
		id := strings.TrimPrefix(string(kv.Key), tokensPrefix)
		_, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, bootstraputil.BootstrapTokenSecretName(id), metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			continue
		}
		if _, err := etcd.Delete(ctx, string(kv.Key)); err != nil {
			return err
		}
	}
	return nil
}

// tokenInfo reads a token's Secret. It refuses those that are not for kthwd's nodes.
func tokenInfo(s *corev1.Secret) (TokenInfo, error) {
	info := TokenInfo{ID: string(s.Data[bootstrapapi.BootstrapTokenIDKey])}
	groups := strings.Split(string(s.Data[bootstrapapi.BootstrapTokenExtraGroupsKey]), ",")
	if s.Type != bootstrapapi.SecretTypeBootstrapToken || !slices.Contains(groups, Group) {
		return info, fmt.Errorf("the token %s is not for the group %s", info.ID, Group)
	}
	var err error
	if info.Expires, err = time.Parse(time.RFC3339, string(s.Data[bootstrapapi.BootstrapTokenExpirationKey])); err != nil {
		return info, fmt.Errorf("the token %s does not say when it expires", info.ID)
	}
	if info.Nodes, err = strconv.Atoi(s.Annotations[annotationNodes]); err != nil {
		return info, fmt.Errorf("the token %s does not say for how many nodes it is", info.ID)
	}
	info.Name = s.Annotations[annotationName]
	if ranges := s.Annotations[annotationRanges]; ranges != "" {
		if info.Ranges, err = ParseRanges(strings.Split(ranges, ",")); err != nil {
			return info, fmt.Errorf("the token %s: %w", info.ID, err)
		}
	}
	return info, nil
}

// ParseRanges reads ranges of addresses such as 10.0.1.0/24.
func ParseRanges(ranges []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, r := range ranges {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			return nil, fmt.Errorf("%q is no range of addresses such as 10.0.1.0/24", r)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func texts(ranges []netip.Prefix) (all []string) {
	for _, r := range ranges {
		all = append(all, r.String())
	}
	return all
}

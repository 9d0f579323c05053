package attack

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// flagSecret is the value of a flag that a joiner must have, and nobody else should.
const flagSecret = "s3cret-of-this-cluster"

// What the guide leaves to upstream's defaults is closed.
func TestClosedWhereTheGuideIsSilent(t *testing.T) {
	t.Parallel()
	c := start(t, kthwtest.Options{Args: []string{"--etcd-arg=initial-cluster-token=" + flagSecret}})
	admin := c.pair(t, "admin")
	t.Run("values of flags", func(t *testing.T) {
		log := c.Log.String()
		if !strings.Contains(log, "initial-cluster-token") {
			t.Error("the log does not tell of the flag: this test shows nothing")
		}
		if strings.Contains(log, flagSecret) {
			t.Errorf("the log has the value of a flag that may be a secret: %s", lineWith(log, flagSecret))
		}
	})
	t.Run("cipher suites", func(t *testing.T) { weakSuitesAreRefused(t, c, admin) })
	t.Run("profiles", func(t *testing.T) {
		for name, port := range map[string]int{"kube-apiserver": c.Ports.Secure, "kube-controller-manager": c.Ports.ControllerManager, "kube-scheduler": c.Ports.Scheduler} {
			if code, body, err := c.ask(t.Context(), admin, http.MethodGet, port, "/debug/pprof/goroutine?debug=1", nil); err != nil || code != http.StatusNotFound {
				t.Errorf("%s shows an administrator a profile of the process: %d %.60q, %v", name, code, body, err)
			}
		}
	})
	t.Run("external addresses", func(t *testing.T) {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "thief"}, Spec: corev1.ServiceSpec{
			Ports: []corev1.ServicePort{{Port: 53}}, ExternalIPs: []string{"192.0.2.53"}}}
		if _, err := c.Client(t).CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("a service took an address that is not its own: %v", err)
		}
	})
	t.Run("tokens", func(t *testing.T) {
		decade, year := int64(10*365*24*3600), 366*24*time.Hour
		var issued *authenticationv1.TokenRequest
		kthwtest.WaitFor(t, "a token of the service account default", kthwtest.Soon, func() (err error) {
			issued, err = c.Client(t).CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default",
				&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &decade}}, metav1.CreateOptions{})
			return err
		})
		if left := time.Until(issued.Status.ExpirationTimestamp.Time); left > year {
			t.Errorf("a token asked for ten years lasts %v", left)
		}
	})
	t.Run("administrator", func(t *testing.T) { administratorLosesRights(t, c, admin) }) // the last one: it takes the rights
}

// H3: a lost admin.kubeconfig can be deprived of its rights, as docs/security.md says. Before,
// its group was system:masters, which nothing takes back for ten years.
func administratorLosesRights(t *testing.T, c *cluster, admin tls.Certificate) {
	secrets := func(cert tls.Certificate) int {
		code, body, err := c.ask(t.Context(), cert, http.MethodGet, c.Ports.Secure, "/api/v1/secrets", nil)
		if err != nil {
			t.Fatalf("list secrets: %v %.100q", err, body)
		}
		return code
	}
	if code := secrets(admin); code != http.StatusOK {
		t.Fatalf("an administrator lists secrets: %d", code)
	}
	if cert, err := x509.ParseCertificate(admin.Certificate[0]); err != nil || slices.Contains(cert.Subject.Organization, "system:masters") {
		t.Fatalf("admin.kubeconfig is of %v, whose rights no binding gives or takes, until %v (%v)", cert.Subject.Organization, cert.NotAfter, err)
	}
	super := c.pair(t, "super-admin")
	patch := func(body string) {
		t.Helper()
		if code, answer, err := c.patch(t.Context(), super, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kthwd:cluster-admins", body); err != nil || code != http.StatusOK {
			t.Fatalf("change the binding: %d %.200q, %v", code, answer, err)
		}
	}
	// kthwd makes its binding again, unless the annotation says that it is meant.
	patch(`{"subjects":null}`)
	kthwtest.WaitFor(t, "the binding as kthwd makes it", kthwtest.Soon, func() error {
		if code := secrets(admin); code != http.StatusOK {
			return fmt.Errorf("an administrator lists secrets: %d", code)
		}
		b, err := c.Client(t).RbacV1().ClusterRoleBindings().Get(t.Context(), "kthwd:cluster-admins", metav1.GetOptions{})
		if err == nil && len(b.Subjects) != 1 {
			err = fmt.Errorf("subjects %v", b.Subjects)
		}
		return err
	})
	patch(`{"metadata":{"annotations":{"rbac.authorization.kubernetes.io/autoupdate":"false"}},"subjects":null}`)
	kthwtest.WaitFor(t, "the administrator without rights", kthwtest.Soon, func() error {
		if code := secrets(admin); code != http.StatusForbidden {
			return fmt.Errorf("an administrator lists secrets: %d", code)
		}
		return nil
	})
	if code := secrets(super); code != http.StatusOK {
		t.Errorf("super-admin.kubeconfig lists secrets: %d", code)
	}
}

// weakSuitesAreRefused: no port accepts a suite of TLS 1.2 in CBC mode, which upstream
// allows; a suite in GCM mode shows that the port is there and speaks TLS 1.2.
func weakSuitesAreRefused(t *testing.T, c *cluster, admin tls.Certificate) {
	etcd := c.ofController(t)
	for name, at := range map[string]struct {
		port int
		cert tls.Certificate
	}{
		"kube-apiserver": {c.Ports.Secure, admin}, "kube-controller-manager": {c.Ports.ControllerManager, admin}, "kube-scheduler": {c.Ports.Scheduler, admin},
		"etcd": {c.Ports.EtcdClient, etcd}, "etcd's peers": {c.Ports.EtcdPeer, etcd},
	} {
		dial := func(suite uint16) error {
			conn, err := attacker.Dial(t.Context(), net.JoinHostPort(c.Address, fmt.Sprint(at.port)))
			if err != nil {
				return err
			}
			defer conn.Close()
			return tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}, Certificates: []tls.Certificate{at.cert}}).
				HandshakeContext(t.Context())
		}
		if err := dial(tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA); err == nil {
			t.Errorf("%s accepts a suite in CBC mode", name)
		}
		if err := dial(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256); err != nil {
			t.Errorf("%s: a suite in GCM mode: %v", name, err)
		}
	}
}

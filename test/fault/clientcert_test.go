package fault

import (
	"regexp"
	"strconv"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// Upstream's API server verifies a client's certificate for each request; kthwd has it done once.
func TestCertificateIsNotVerifiedForEachRequest(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	client := c.Client(t)
	get := func(path string) []byte {
		body, err := client.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(t.Context())
		if err != nil {
			t.Fatalf("GET %s: %v", path, err)
		}
		return body
	}
	const requests = 200
	before := verifications(t, get("/metrics"))
	for range requests {
		get("/version")
	}
	// Others connect meanwhile, and each of them is verified, too.
	if n := verifications(t, get("/metrics")) - before; n > requests/2 {
		t.Errorf("%d requests on one connection: %d certificates were verified", requests, n)
	}
	me, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || me.Status.UserInfo.Username != "admin" {
		t.Errorf("got the user %+v (%v), want admin", me.Status.UserInfo, err)
	}
}

var verified = regexp.MustCompile(`(?m)^apiserver_client_certificate_expiration_seconds_count (\d+)$`)

// verifications is how many certificates the API server has verified so far.
func verifications(t *testing.T, metrics []byte) int {
	t.Helper()
	found := verified.FindSubmatch(metrics)
	if found == nil {
		t.Fatal("the API server does not say how many certificates it has verified")
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

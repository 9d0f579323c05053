package values

import "testing"

// The key of a value is in its beginning.
func TestSplitStored(t *testing.T) {
	for _, want := range []string{"k8s:enc:secretbox:v1:key1:", "k8s:enc:aescbc:v1:a:", "k8s:enc:kms:v2:vault:", ""} {
		if got, ok := splitStored([]byte(want + "x:y:z")); ok != (want != "") || got != want {
			t.Errorf("%s: got %s, %v", want, got, ok)
		}
	}
	if got := KeyName("k8s:enc:secretbox:v1:key1:"); got != "secretbox key1" {
		t.Errorf("got %s", got)
	}
}

package member

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// clockSkew is how much two clocks may differ without a word. Leases and events last some
// seconds; certificates are backdated by minutes.
const clockSkew = 3 * time.Second

// SkewWarning returns what to know about the difference between the clock of the controller
// that answered and this machine's, or "". asked and answered are this machine's times around
// the request: what the network took is no difference.
func SkewWarning(there, asked, answered time.Time) string {
	switch {
	case there.IsZero():
		return ""
	case there.Before(asked.Add(-clockSkew)):
		return fmt.Sprintf("the clock of this machine is %v ahead of the cluster's: leases, tokens and certificates depend on it; set it before the start (timedatectl)", asked.Sub(there).Round(time.Second))
	case there.After(answered.Add(clockSkew)):
		return fmt.Sprintf("the clock of this machine is %v behind the cluster's: leases, tokens and certificates depend on it; set it before the start (timedatectl)", there.Sub(answered).Round(time.Second))
	}
	return ""
}

// Outdated explains an error about a certificate whose dates do not fit the clock here, with
// what to do; ok is false for any other error. whose is the certificate in a sentence.
func Outdated(err error, whose string, now time.Time) (text, do string, ok bool) {
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired || invalid.Cert == nil {
		return "", "", false
	}
	clock := now.UTC().Format(time.DateTime) + " UTC"
	if now.Before(invalid.Cert.NotBefore) {
		return fmt.Sprintf("%s is valid from %s UTC on, and the clock here says %s", whose, invalid.Cert.NotBefore.UTC().Format(time.DateTime), clock),
			"set the clocks of both machines (timedatectl), and try again", true
	}
	return fmt.Sprintf("%s expired at %s UTC; the clock here says %s", whose, invalid.Cert.NotAfter.UTC().Format(time.DateTime), clock),
		"issue it anew where it is, and try again: kthwd status there shows the command; if it has not expired, set the clocks (timedatectl)", true
}

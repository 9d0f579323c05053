package join

import (
	"strings"
	"testing"

	"kthwd/appliance/config"
	"kthwd/appliance/member"
	"kthwd/appliance/preflight"
)

// The token was made for one machine and is used on another.
func TestTokenForAnotherMachine(t *testing.T) {
	c := config.Default().Controller
	c.BindAddress, c.AdvertiseAddress = "127.0.0.1", "203.0.113.7" // for documentation: RFC 5737
	c.SecurePort, c.EtcdClientPort, c.EtcdPeerPort, c.ControllerManagerPort, c.SchedulerPort, c.HealthAddress = 0, 0, 0, 0, 0, ""
	err := notHere(preflight.Ports(c, ""), member.Files{Name: "c1", Address: "203.0.113.7"})
	if want := "the token is for a controller at 203.0.113.7, which is not an address of this machine"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	c.AdvertiseAddress = "127.0.0.1"
	if err := notHere(preflight.Ports(c, ""), member.Files{}); err != nil {
		t.Errorf("an address of this machine: got %v", err)
	}
}

package preflight

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/program"
)

// Ports finds all ports in use before anything is written or started.
func Ports(c config.Controller, metrics string) error {
	type port struct {
		component, host, flag string
		number                int
	}
	ports := []port{
		{program.APIServer, c.BindAddress, "--secure-port", c.SecurePort},
		{program.Etcd, c.AdvertiseAddress, "--etcd-client-port", c.EtcdClientPort},
		{program.Etcd, c.AdvertiseAddress, "--etcd-peer-port", c.EtcdPeerPort},
		{program.ControllerManager, program.ControllersBind(c), "--controller-manager-port", c.ControllerManagerPort},
		{program.Scheduler, program.ControllersBind(c), "--scheduler-port", c.SchedulerPort},
	}
	if c.AdvertiseAddress != "127.0.0.1" {
		ports = append(ports, port{program.Etcd, "127.0.0.1", "--etcd-client-port", c.EtcdClientPort})
	}
	var errs []error
	for _, p := range ports {
		errs = append(errs, tryListen(p.component, net.JoinHostPort(p.host, fmt.Sprint(p.number)), p.flag))
	}
	if c.HealthAddress != "" {
		errs = append(errs, tryListen("health", c.HealthAddress, "--health-address"))
	}
	if metrics != "" {
		errs = append(errs, tryListen("status", metrics, "--metrics-address"))
	}
	return errors.Join(errs...)
}

func tryListen(component, address, flag string) error {
	l, err := net.Listen("tcp", address)
	if err == nil {
		return l.Close()
	}
	return advice.With(fmt.Errorf("%s: %w", component, err), PortHint(err, address, flag))
}

// PortHint says what to do about a port that cannot be listened on.
func PortHint(err error, address, flag string) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("%s listens on %s: stop it (`ss -ltnp` shows it), or choose another port with %s", holderOf(address), address, flag)
	case errors.Is(err, syscall.EACCES):
		return fmt.Sprintf("ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose another with %s", flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Sprintf("%s is not an address of this machine", address)
	default:
		return "choose another address with " + flag
	}
}

// holderOf is Holder for ADDRESS:PORT; "another program" if it has ended or cannot be found.
func holderOf(address string) string {
	_, text, _ := net.SplitHostPort(address)
	port, err := strconv.Atoi(text)
	if err != nil {
		return "another program"
	}
	return cmp.Or(Holder(port), "another program")
}

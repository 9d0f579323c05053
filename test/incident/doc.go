// Package incident replays incidents on the real binary, and checks that a tired operator
// would find the cause: each surface that shows the state of a controller must name the
// cause, the time at which it began, and a command that can be typed as it stands.
//
// A test makes the incident, then calls look with what the surfaces must say:
//
//	seen := look(t, c, incident{name: "…", cause: `webhook "…"`, do: "kubectl delete …", kind: "webhook"})
//
// look waits until kthwd status says it, and then reads the other surfaces: JSON, the
// health bridge, the metrics, the page and the log. Each test then types the command and
// waits until the controller is healthy again, where that is possible.
//
// Where the incident ends the process or keeps it from starting, ended checks what is left: the
// error of the start or kthwd status, and the log.
//
// make incidents runs them all and prints a table of incidents and surfaces with a score:
// three points for each incident (cause, time, command), and the alert that fires. An incident
// that was skipped has none. Below 45 of 48 points it fails, where it runs as root.
//
// # Inputs on which kthwd once failed
//
// Each row is a report of people who run control planes, repeated by the test after it on the
// real binary. Each stands for its class: the tests after "beside" have other members of it.
// TestInputs holds the table to the tests; a case of a test is in quotes.
//
// A cause outside must not end or hang the process:
//
//	S1  a webhook refuses tokens of service accounts        TestExitEndsOneTerm; beside TestExitEndsOneTerm "refusingPolicy", TestPanicEndsOneTerm "horizontalpodautoscaler" "job", TestSoakSwitches, TestOfThree "RollingRestartAmongExits", TestWebhooks
//	S2  a host name of 64 characters                        TestStopWithALongHostName; beside TestStopWhileLeasesAreRefused, TestStopWhileStarting, TestStopOnFullDisk, TestStopBesideStreams
//	S3  HTTPS_PROXY on two controllers                      TestProxyOfTheEnvironment; beside TestProxyOfTheEnvironment "KUBERNETES_SERVICE_HOST" "KUBECONFIG" "ETCD_DATA_DIR" "verbsWithoutProxy", TestClients
//	S4  authorization-config excludes a flag of kthwd's     TestFlagsGiveWay; beside TestFlagsGiveWay "audit-log-path-", TestFlagsThatExcludeEachOther, TestRefusedStartWritesNothing "a flag that kthwd relies on"
//	S5  a second CA in ca.pem                               TestTwoCAs; beside TestBadFiles "no CA belongs to the key" "a CA that is hidden by a byte order mark", TestWithoutCAKey
//	S6  # , and " in the path of the data directory         TestDataDirOfAnyName "fragment" "list"; beside TestDataDirOfAnyName "all" "long", TestPathRefused, TestNothingButASocketIsRemoved
//	S7  --bind-address=:: with IPv6 off                     TestAllAddressesWithoutIPv6; beside TestAllAddressesWithoutIPv6 "--metrics-address=[::]" "--health-address=[::]", TestMachineWithoutIPv4
//	S8  a file system without hard links                    TestFileSystemThatLacks "vfat"; beside TestFileSystemThatLacks "mqueue" "--etcd-data-dir="
//
// Data that exist are never made worse:
//
//	N1  encryption-config.yaml is missing beside data       TestLostSecrets "encryption-config"; beside TestLostSecrets "service-account" "etcd-ca"
//	N2  ca.pem and its key are missing beside data          TestLostSecrets "ca"; beside TestLostSecrets "a new one that is meant" "a name that is none"
//	N3  a machine with IPv6 alone                           TestMachineWithoutIPv4; beside TestRefusedStartWritesNothing "a setting" "a file that is not there" "a port"
//	N4  another service range than the cluster's            TestDrift "service_range"; beside TestDrift "pod_range" "cluster_name" "token_issuer"
//	N5  kubernetes.pem is moved away, with names            TestNewCertificateKeepsNames "a start"; beside TestNewCertificateKeepsNames "pki init" "pki renew", TestNamesAreKept
//	N6  a private key in kubernetes.pem, open to all        TestBadFiles "a private key in a certificate readable by the world"; beside TestBadFiles "a private key in the certificate of the token keys" "a kubeconfig readable by the world" "encryption key readable by the world"
//	N7  an address among the DNS names                      TestBadFiles "an address among the DNS names"; beside TestBadFiles "no name but the common name" "another address"
//
// The cause is said:
//
//	C1  a webhook refuses everything                        TestWebhooks "for everything"; beside TestWebhooks "that denies", TestExitEndsOneTerm "refusingPolicy", TestSpoiltObjects "brokenWebhooks"
//	C2  ca.pem is replaced                                  TestFilesReplaced "another CA"; beside TestFilesReplaced "another key" "another encryption key", TestFilesUnreadable
//	C3  etcd has no space                                   TestEtcdWithoutSpace; beside TestSpaceOfNoMember, TestSpaceFullOnThree
//	C4  0 bytes free                                        TestDiskFull; beside TestDiskFullAtStart, TestDiskFullWhileRunning, TestStopOnFullDisk
//	C5  a disk of 3 IOPS                                    TestSlowDisk "--etcd-data-dir"; beside TestSlowDisk "--etcd-arg=wal-dir", TestHealthyLifeIsCalm
//	C6  another encryption key                              TestAnotherEncryptionKey; beside TestEncryptionKMS, TestEncryptionEdited
//	C7  the token key pair is replaced                      TestFilesReplaced "another token key pair"; beside TestFilesReplaced "C7 token key pair replaced" "C7 a client with an old token"
//	C8  killed by the memory limit                          TestOutOfMemory; beside TestLastRun "after SIGKILL" "after SIGABRT", TestKilledByTheMemoryLimit
//	C9  a broken APIService                                 TestSpoiltObjects "brokenAPIService"; beside TestSpoiltObjects "brokenConversion" "brokenWebhooks"
//	C10 the seed and bootstrap roles are deleted            TestSpoiltObjects "bootstrapObjectsRestored"; beside TestObjectsOfTheStart "PriorityClasses" "APIServices" "rangeOfServices"
//	C11 port 6443 is taken                                  TestPortTaken; beside TestPortNamesTheProcess, TestPortInUse, TestAllPortsInUse
//	C12 ulimit -n 200                                       TestNothingRuns "ulimit -n 200"; beside TestLowLimits "--nofile=200:200" "--fsize=4194304" "--nproc=40:40"
//	C13 kubernetes.pem expires in 5 days                    TestCertificatesExpireSoon; beside TestKubeconfigExpiresSoon, TestCertificateExpired
//	C14 kthwd status when nothing runs                      TestNothingRuns; beside TestStatusWithoutAnAnswer "a process that is stopped" "a process without its socket"
package incident
